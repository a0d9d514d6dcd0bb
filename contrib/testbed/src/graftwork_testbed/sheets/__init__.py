"""Contact sheets: what a data set holds, at a glance. `contact` has the entry; the other modules draw a kind of sample each."""
