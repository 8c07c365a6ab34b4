"""A whole hand: each joint taken apart, drawn, and compared over visits."""
