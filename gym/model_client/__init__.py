"""Client of served models (policies and judges): endpoints, retries, deadlines, sampled tokens and their versions.

    client      the whole call, as agents and judges make it
    forward     one chat completion: deadlines, retries
    answers     classification of HTTP answers (pure)
    retry       retry decisions and the error of a call that is given up (pure)
    sampling    the policy's model and pinned sampling parameters (pure)
    versions    the policy version that a server reports (pure)
    settings    limits of a call
    routing/    choice of the endpoint: load balancing, stickiness, health, queue, pause
    tokens/     token ids and log-probabilities: requested, read, continued exactly
    http/       HTTP/1.1 connections, streams, addresses, refusals

Invariants. No call outlives its deadline; no call is sent more often than 1 + `max_retries` times; token ids are
those of the server; an API key is never part of an error, a log line or a statistic.
"""
