"""What may come in and what may go out, by the site's own file. A message passes twice.

On the way in it is recorded, read and judged once (`entrance`), and leaves as a `Judged` request. On the way out the
answer is recorded, or the reason for which there is none (`exit`). Here too: the guard, which lets in no code.

May enter: whatever a coordinator sends; nothing of it is trusted.
"""
