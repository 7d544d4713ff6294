#include "textflag.h"

// func vfork(flags uintptr) (pid, errno uintptr)
//
// The child uses the stack that the parent will go on with, so the return
// address waits in a register meanwhile.
TEXT ·vfork(SB),NOSPLIT|NOFRAME,$0-24
	MOVQ	flags+0(FP), DI
	XORL	SI, SI // the parent's stack
	XORL	DX, DX
	XORL	R10, R10
	XORL	R8, R8
	MOVL	$56, AX // clone
	POPQ	R12
	SYSCALL
	PUSHQ	R12
	MOVQ	$0, errno+16(FP)
	CMPQ	AX, $-4095
	JCS	done
	NEGQ	AX
	MOVQ	AX, errno+16(FP)
	MOVQ	$-1, AX
done:
	MOVQ	AX, pid+8(FP)
	RET
