"""Client of served models (policies and judges): which endpoint, when, how often; what was sampled, by which version.

    client      the whole call, as agents and judges make it
    forward     one chat completion: deadlines, retries
    answers     what an HTTP answer means (pure)
    retry       when a call may be sent again, and what is said when not (pure)
    sampling    the policy's model and pinned sampling parameters (pure)
    versions    the policy version that a server reports (pure)
    settings    bounds of a call
    routing/    which endpoint takes a call: load, stickiness, health, queue, pause
    tokens/     token ids and log-probabilities: asked for, read, continued exactly
    http/       HTTP/1.1 connections, streams, addresses, refusals

Invariants. No call goes on beyond its deadline; no call is sent more often than 1 + `max_retries` times; token ids are
those that the server named; an API key is never part of an error, a log line or a statistic.
"""
