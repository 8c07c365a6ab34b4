"""What blsgan's networks are for, each with its front door: separation,
segmentation and the location of a hand's joints."""
