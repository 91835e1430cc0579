"""Parts of the trainer. Each file holds one idea; imports between them form a DAG.

Letters used for shapes everywhere: B batch, C latent channels, H W image, h w latent,
h' w' the discriminator's logit map, N = 3 H W elements of an image.
"""
