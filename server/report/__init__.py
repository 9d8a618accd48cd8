"""What a person sees of a run: the page that is written when it is over, and the lines while it goes on.

May enter: the files of a run's folder, and the events of one that is going on.
"""
