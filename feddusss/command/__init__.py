"""`feddusss COMMAND`: one way in to the command lines of all rooms. It may name every room's `__main__`, and imports
the one that is called; what a command is and does stays with its room.
"""
