"""What exists for speed only; each has a plain twin, a test that both agree, and a switch.

| fast | plain twin | switch |
|---|---|---|
| `convolutions`, `spectral`: two convolutions with pooling in one | the layers | `training.kernels` |
| `residual`: the stem and the blocks of a residual network | the layers | `training.kernels` |
| `stacked`, `layers`: many devices as one set of tensors | one by one | `engine.batch_devices`, `together` |
| `vmapped`: the same for any network | one by one | `engine.batch_devices` |

An unknown network runs in plain torch, one device after the other.
"""
