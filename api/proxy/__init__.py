"""The model proxy as a process, for agents outside the workers: plain ASGI around `gym.model_client` and `gym.wire`.

app       create_app: routes, lifespan, keys
exchange  one HTTP request: its body, its answer, and a client that leaves
dialects  the three ways to ask and to answer
errors    what went wrong, in the caller's dialect
calls     one model call: policy, deadline, streaming
capture   the same under a rollout: recorded, and answered from the record when it is repeated
"""
