"""The base classes of the kinds of component: datasets, objectives, guidance, evaluators. (A model is any torch module or pipeline.)"""
