#include "textflag.h"

// func clone(args *cloneArgs, size uintptr) (pid, errno uintptr)
//
// The child runs on our stack and overwrites what lies below, so the return address waits in a register until
// it is done, which is when the system call returns a second time.
TEXT ·clone(SB),NOSPLIT|NOFRAME,$0-32
	MOVQ	args+0(FP), DI
	MOVQ	size+8(FP), SI
	MOVQ	$435, AX // clone3
	POPQ	R12
	SYSCALL
	PUSHQ	R12
	CMPQ	AX, $0xfffffffffffff001
	JLS	ok
	MOVQ	$-1, pid+16(FP)
	NEGQ	AX
	MOVQ	AX, errno+24(FP)
	RET
ok:
	MOVQ	AX, pid+16(FP)
	MOVQ	$0, errno+24(FP)
	RET
