"""How the models come about: faces prepared, a classifier trained, pairs made, generators trained on them.

The files in the order of the data: `data`, `classifier`, `stylegan2` and `stylegan2_pairs`, `pairs`, then
`discriminator`, `losses` and `swapper`. Nothing imports this package; it knows no server.
"""
