"""graftwork-grad-cam: where in an image a network finds its evidence, and how good such maps are.

Each part is a module: `grad_cam`, `guided_backprop`, `guided_grad_cam`, `cam`, `neuron_importance`, `occlusion`; `targets`, `layers`,
`capture`, `evidence` and `maps` are what they stand on, `localization` measures them. Importing this imports no torch.
"""

__version__ = "0.1.0"
