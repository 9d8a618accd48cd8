"""The site's own page: pictures with what the models say of them, for the hospital's own eyes.

May enter: the site's own file, its data, and the finished models in its private state. Nothing here answers a message,
and what is made here stays in the site's folder.
"""
