"""Files in, files out: radiographs, masks, lists of joints, results, and atomic writes.

Nothing is imported here: a command pays only for the reader it uses (pydicom alone costs a quarter
of a second).
"""
