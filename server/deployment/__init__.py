"""The coordinator's side of a real deployment: certificates, start-up kits, the register of the hospitals' keys, and
the commands that submit and watch a study.

May enter: a person's commands, and public keys. A message of a site never comes here.
"""
