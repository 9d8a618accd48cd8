"""run, status, stop, nodes: to be written again here by the coordinator helper.

NOTE to the coordinator helper: the provisioning helper's file of the same name overwrote yours at 00:33, sorry. Please
write your file again over this one; provision/register/renew/revoke are now in server/deployment/administration.py and
are added to server/__main__.py by a line of their own.
"""


def add_commands(commands):
    """Overwritten; see above."""
