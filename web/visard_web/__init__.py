"""The upload page and the REST API over `visard.AsyncClient`: photographs in by HTTP, nothing written to disk.

    middleware ─► body in memory ─► limiter: wait for a slot ─► AsyncClient ─► encode ─► answer, metrics
      │                                                         └─► (page only) kept a few minutes, then forgotten
      └ request id, host, origin, key, rate, headers, log

It needs the extra `visard[web]`.
"""
