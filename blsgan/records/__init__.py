"""One model for each JSON file that blsgan writes: its layout, its ``kind``, its version.

Who writes a file builds the model, who reads one validates it; nothing else knows a layout. A field
that is added has a default, so that older files stay readable, and a layout that earlier versions
would misread gets a new number in ``schema``.
"""
