"""Trains the models: one sub-package for each stage, in the order of the data.

    data         photographs of people ─► aligned faces
    classifier   aligned faces ─► the gender classifier
    personas     aligned faces ─► faces of nobody, and the generator that puts them in a face's place
    pairs        a StyleGAN2 ─► the same face once female, once male
    swapper      pairs ─► a generator for one direction

Below them lies `runs`, what every training shares. The stages do not know each other, except that all take faces of
`data` and that `swapper` reads what `pairs` wrote. Nothing here knows a server.
"""
