"""The public dataset: its layout, the split by joint, real overlaps seen at another visit."""
