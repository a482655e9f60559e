"""How well a folder of photos is anonymised, in figures that can be compared.

    photos ─► labels ─► results: made by a client, or found by pairs ─► measures ─► summary ─► html, markdown, JSON

The files in the order of the data; `run.evaluate` goes all the way. Import what you need from them: this package itself
loads neither scipy nor matplotlib, which come with the extra ``[evaluate]``.
"""
