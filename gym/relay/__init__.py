"""The API's calls carried over Redis publish/subscribe, for a trainer and a farm that share nothing but a Redis.

A client asks on a channel of its own and is told on another; an api process listens and answers with the very app that
answers HTTP, so both speak one contract. Nothing is stored: no key is read or written, nothing is left behind, and a
Redis that is full still carries answers. Who may ask what is the ACL of the channels (`acl`).

    client ──publish──▶ PREFIX:DB:relay:ask:SCOPE:NAME:SERVER    hello, ask, body, more, ping
    client ◀──publish── PREFIX:DB:relay:tell:NAME:LINE           here, answer, part, more, lost

`frames` says what travels, `caller` is a client's side without I/O, `server` the farm's. A publication says how many
heard it, so either side learns at once that the other is gone; what was under way is then asked again by the client.
"""
