"""Measurements that take minutes; run by hand, not collected by pytest."""
