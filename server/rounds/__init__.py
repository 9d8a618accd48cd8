"""Rounds of a study: who is asked, what is sent, what comes back and is refused, and how one model is made of many.

May enter: answers of sites, which `replies` checks before anything else looks at them.
"""
