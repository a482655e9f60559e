"""The command `visard`: one file for each command. The other packages do the work.

`app` puts the commands together; `console` is what they share. Importing this package loads the SDK and nothing else
of ours: each command loads what it needs when it runs.
"""
