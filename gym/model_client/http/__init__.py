"""HTTP/1.1 to model servers: kept connections, streamed bodies, URLs, allowed hosts, refusals."""
