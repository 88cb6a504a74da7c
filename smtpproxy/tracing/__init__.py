"""Reading trace files: lists, time lines, exports, and sessions played again."""
