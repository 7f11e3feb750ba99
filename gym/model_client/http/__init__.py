"""HTTP/1.1 to model servers: persistent connections, streamed bodies, URLs, allowed hosts, refusals."""
