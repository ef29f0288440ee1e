"""How the agent updates itself: trust, download, slots, the boot record, and the trial of a slot.

Nothing here is imported by the running agent that costs memory: metadata is checked and images are
fetched by a process of their own (`worker`), and `launcher` stands alone outside the slots.
"""
