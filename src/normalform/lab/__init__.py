"""Comparing norms on real images: data, networks, arms, training, records, report."""
