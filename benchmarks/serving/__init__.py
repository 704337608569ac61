"""What serving costs, measured: ratios within one run, because machines differ."""
