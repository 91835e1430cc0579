"""Parts of the trainer. Each file holds one idea; imports between them form a DAG.

Letters used for shapes everywhere: B batch, K image channels (1 grey, 3 RGB, 4 RGBA), C latent
channels, H W image, h w latent, h' w' the discriminator's logit map, N = K H W elements of an
image.
"""
