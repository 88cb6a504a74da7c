"""The cluster: what several replicas of the service share by a Redis or Valkey server.

Needs the package of the extra `cluster`.
"""
