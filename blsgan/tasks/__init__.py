"""What blsgan's networks are for, each with its front door: separation and segmentation."""
