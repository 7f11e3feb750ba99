"""The model proxy as a library: which endpoint, when, how often; what was sampled and under which version.

    policies    the records of where policies are served
    hosts       which hosts a policy may be served from
    gate        pause and resume, calls in flight and held
    urls        the addresses under a base URL (pure)
    endpoint    one endpoint: load, ejection, what the server can do (pure)
    endpoints   the choice of an endpoint: load, stickiness, room (pure)
    line        the calls that wait while every endpoint is full
    health      active checks: what is dead, silent or hangs loses its calls, what is back gets some
    questions   what an endpoint is asked to find that out
    overflow    a refusal read: was the context too short (pure)
    response_tokens  the same for a server that is spoken to in Responses (pure)
    capture     token ids and log-probabilities: what to ask for, how to read them
    prefix      required_prefix_token_ids, for a chat server that takes it (pure)
    sampling    the policy's model and pinned sampling parameters (pure)
    versions    the policy version that a server reports (pure)
    retry       when a call may be sent again, and what is said when not (pure)
    connection  HTTP/1.1 on one connection to a server
    connections  the connections to all servers, kept and used again
    streaming   a streamed chat completion: handed on as it comes, and put together
    splice      a prompt that goes on from the exact tokens of the turn before (pure)
    token_in    a chat completion made of token ids, for a policy with `api: tokens`
    token_stream  the same, streamed
    answers     what an HTTP answer means (pure)
    forward     one chat completion: deadlines, retries
    client      the whole call, as the agents make it

Invariants. No call goes on beyond its deadline; no call is sent more often than 1 + `max_retries` times; token ids are
those that the server named; an API key is never part of an error, a log line or a statistic.
"""
