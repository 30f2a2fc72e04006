package gvisor

// childVariable holds what a child process of a crash test is to do.
const childVariable = "CARREL_GVISOR_CHILD"

func child() int { return 0 }
