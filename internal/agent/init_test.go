package agent

const initVariable = "CARREL_AGENT_TEST_INIT"

func runAsInit() int { return 0 }
