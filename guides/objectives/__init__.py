"""What training can ascend; :data:`guides.bounds.OBJECTIVES` has all of it by name."""
