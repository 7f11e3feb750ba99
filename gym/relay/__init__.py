"""The API's calls over Redis publish/subscribe, for a trainer and a farm that share only a Redis.

A client sends requests on one channel and receives responses on another. An api process listens and answers with the
same app that answers HTTP, so both have one contract. Nothing is stored: no key is read or written, and a full Redis
still carries responses. The ACL of the channels (`acl`) controls which user may send what.

    client ──publish──▶ PREFIX:DB:relay:ask:SCOPE:NAME:SERVER    hello, ask, body, more, ping
    client ◀──publish── PREFIX:DB:relay:tell:NAME:LINE           here, answer, part, more, lost

`frames` defines the messages, `caller` is the client's side without I/O, `server` the farm's. Publishing returns the
number of receivers, so either side learns at once that the other is gone; the client then repeats its calls.
"""
