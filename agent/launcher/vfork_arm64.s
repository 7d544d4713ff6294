#include "textflag.h"

// func vfork(flags uintptr) (pid, errno uintptr)
//
// The child uses the stack that the parent will go on with; the return address
// is in a register all the time.
TEXT ·vfork(SB),NOSPLIT|NOFRAME,$0-24
	MOVD	flags+0(FP), R0
	MOVD	ZR, R1 // the parent's stack
	MOVD	ZR, R2
	MOVD	ZR, R3
	MOVD	ZR, R4
	MOVD	$220, R8 // clone
	SVC
	MOVD	ZR, errno+16(FP)
	CMN	$4095, R0
	BCC	done
	NEG	R0, R0
	MOVD	R0, errno+16(FP)
	MOVD	$-1, R0
done:
	MOVD	R0, pid+8(FP)
	RET
