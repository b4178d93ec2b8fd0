"""The kernels of channel_decoupling, functions of Triton and nothing else (names: README.md).

A map is seen as X (B, R, L): R the smaller of channels and positions ("rank" axis), L the other
("long" axis). TALL: the rank axis is the channels (C <= N).
"""
