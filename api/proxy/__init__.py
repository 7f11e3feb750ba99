"""The model proxy as a process, for agents outside the workers: plain ASGI around `gym.model_client` and `gym.wire`.

app       create_app: routes, lifespan, keys
exchange  one HTTP request: its body, its answer, client disconnects
dialects  the three APIs: requests, answers and streams
errors    errors in the caller's dialect
calls     one model call: policy, deadline, streaming
capture   model calls of a rollout: recorded, and answered from the record when repeated
"""
