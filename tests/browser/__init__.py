"""A package, so that its fixtures end with it: while Playwright runs, its thread has a running event loop, which tests in
other folders could not bear."""
