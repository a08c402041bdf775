"""What a run is: configuration, folder, training loop, drawing, measuring. Usable from a notebook; prints no tables.

config  dataclasses, presets, JSON         build    schedule, network, loss, optimiser of a configuration
checks  what a configuration has to be     folders  its folder, and what may change when it goes on
loop    training, stopped and gone on      sampling samples of a run, chunk by chunk over the devices
"""
