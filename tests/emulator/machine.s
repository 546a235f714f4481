# What the emulated PC runs from power-on: long mode with every vector register on, then a table of kernel calls.
#
# The host writes "calls" (kernel, arguments, their number, a status) and "outputs" (address, bytes), each ending
# in zeros, and "buffers" (address, bytes): what calls write, set to 0xA5 before. Results go to port 0xE9, which the
# emulator copies to its standard output: "<calls", the statuses, "><bytes", the outputs, "bytes>". A kernel that
# raises, and an exception, say so in words before. What TVM's runtime gives kernels is at the end: workspaces,
# tasks one after the other, errors.

.set STACK, 0x700000
.set PAGES, 0x10000            # page tables: one for each of 4 GiB
.set IDT, 0x20000
.set HEAP, 0x40000000          # workspaces

# The processor starts in real mode 16 bytes below 4 GiB.
.section .rom, "ax"
.code16
start16:
    cli
    lgdtl %cs:(gdt_pointer - start16)
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x08, $start32
.balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff   # 0x08: 32-bit code
    .quad 0x00cf93000000ffff   # 0x10: data
    .quad 0x00af9b000000ffff   # 0x18: 64-bit code
gdt_pointer:
    .word . - gdt - 1
    .long gdt
.org 0xfff0
    jmp start16
.org 0x10000

.text
.code32
start32:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    # 4 GiB mapped to themselves by pages of 2 MiB.
    movl $PAGES + 0x1003, PAGES
    movl $0, PAGES + 4
    xorl %ecx, %ecx
1:  movl %ecx, %eax
    shll $12, %eax
    addl $PAGES + 0x2003, %eax
    movl %eax, PAGES + 0x1000(, %ecx, 8)
    incl %ecx
    cmpl $4, %ecx
    jb 1b
    xorl %ecx, %ecx
1:  movl %ecx, %eax
    shll $21, %eax
    orl $0x83, %eax
    movl %eax, PAGES + 0x2000(, %ecx, 8)
    incl %ecx
    cmpl $2048, %ecx
    jb 1b
    movl $PAGES, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x620, %eax           # PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax           # EFER.LME
    wrmsr
    movl $0x80000023, %eax     # PG, NE, MP, PE: caches on, no x87 emulation
    movl %eax, %cr0
    ljmpl $0x18, $start64

.code64
start64:
    movq $STACK, %rsp
    # The vector registers that this processor has, as an operating system would turn them on.
    movl $1, %eax
    cpuid
    btl $26, %ecx              # XSAVE
    jnc 1f
    movq %cr4, %rax
    orl $0x40000, %eax
    movq %rax, %cr4
    movl $0xd, %eax
    xorl %ecx, %ecx
    cpuid
    andl $0xe7, %eax           # x87, SSE, AVX, AVX-512
    xorl %edx, %edx
    xorl %ecx, %ecx
    xsetbv
1:
    # Every exception ends the run.
    leaq exceptions(%rip), %rax
    movl $IDT, %edi
    movl $32, %ecx
1:  movw %ax, (%rdi)
    movw $0x18, 2(%rdi)
    movw $0x8e00, 4(%rdi)
    movq %rax, %rdx
    shrq $16, %rdx
    movw %dx, 6(%rdi)
    movq $0, 8(%rdi)
    addq $8, %rax
    addq $16, %rdi
    decl %ecx
    jnz 1b
    lidt idt_pointer(%rip)

    movq buffers(%rip), %rdi
    movq buffers + 8(%rip), %rcx
    movb $0xa5, %al
    rep stosb
    leaq calls(%rip), %rbx
    xorl %r12d, %r12d
next:
    movq (%rbx), %rax
    testq %rax, %rax
    jz finished
    movq %r12, current(%rip)
    xorl %edi, %edi
    movq 8(%rbx), %rsi
    movl 16(%rbx), %edx
    leaq result(%rip), %rcx
    call *%rax
    movl %eax, 24(%rbx)
    addq $32, %rbx
    incq %r12
    jmp next

finished:
    leaq text_calls(%rip), %rsi
    call say
    leaq calls(%rip), %rbx
1:  cmpq $0, (%rbx)
    je 2f
    movl 24(%rbx), %eax
    call say_number
    addq $32, %rbx
    jmp 1b
2:  leaq text_bytes(%rip), %rsi
    call say
    leaq outputs(%rip), %rbx
    movw $0xe9, %dx
1:  movq (%rbx), %rsi
    testq %rsi, %rsi
    jz 2f
    movq 8(%rbx), %rcx
    rep outsb
    addq $16, %rbx
    jmp 1b
2:  leaq text_end(%rip), %rsi
    call say
power_off:
    leaq text_shutdown(%rip), %rsi
    movl $8, %ecx
    movw $0x8900, %dx
    rep outsb
1:  hlt
    jmp 1b

# rsi: a text that ends in 0
say:
    movw $0xe9, %dx
1:  lodsb
    testb %al, %al
    jz 2f
    outb %al, %dx
    jmp 1b
2:  ret

# rax: printed as 16 hexadecimal digits and a space
say_number:
    movq %rax, %r8
    movw $0xe9, %dx
    movl $16, %ecx
1:  rolq $4, %r8
    movl %r8d, %eax
    andl $15, %eax
    leaq digits(%rip), %r9
    movb (%r9, %rax), %al
    outb %al, %dx
    decl %ecx
    jnz 1b
    movb $32, %al
    outb %al, %dx
    ret

.balign 8
exceptions:
.rept 32
    call exception             # its return address tells the vector
    .balign 8
.endr
exception:
    popq %rbx
    leaq exceptions(%rip), %rax
    subq %rax, %rbx
    shrq $3, %rbx
    leaq text_exception(%rip), %rsi
    call say
    movl %ebx, %eax
    call say_number
    movq current(%rip), %rax
    call say_number
    # Some exceptions push an error code below rip, cs, flags: show four words.
    movl $4, %ebp
1:  popq %rax
    call say_number
    decl %ebp
    jnz 1b
    leaq text_newline(%rip), %rsi
    call say
    jmp power_off

# void* TVMBackendAllocWorkspace(int device, int id, uint64_t bytes, int, int); freed last in, first out
alloc_workspace:
    movq heap(%rip), %rax
    leaq 127(%rax, %rdx), %rdx
    andq $-64, %rdx
    movq %rdx, heap(%rip)
    incq live(%rip)
    ret
free_workspace:
    decq live(%rip)
    jnz 1f
    movq $HEAP, heap(%rip)
1:  xorl %eax, %eax
    ret

# int TVMBackendParallelLaunch(int (*task)(int, env*, void*), void* data, int tasks): one after the other
parallel_launch:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    subq $24, %rsp
    testl %edx, %edx
    jnz 1f
    movl tasks(%rip), %edx
1:  movq %rdi, %rbx
    movq %rsi, %rbp
    movl %edx, %r12d
    xorl %r13d, %r13d
2:  movq $0, (%rsp)
    movl %r12d, 8(%rsp)
    movl %r13d, %edi
    movq %rsp, %rsi
    movq %rbp, %rdx
    call *%rbx
    testl %eax, %eax
    jnz 3f
    incl %r13d
    cmpl %r12d, %r13d
    jb 2b
    xorl %eax, %eax
3:  addq $24, %rsp
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

# void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int number)
.globl TVMFFIErrorSetRaisedFromCStrParts
TVMFFIErrorSetRaisedFromCStrParts:
    pushq %rbx
    pushq %rbp
    movq %rsi, %rbx
    movl %edx, %ebp
    leaq text_raised(%rip), %rsi
    call say
    movq current(%rip), %rax
    call say_number
1:  testl %ebp, %ebp
    jz 3f
    movq (%rbx), %rsi
    testq %rsi, %rsi
    jz 2f
    call say
2:  addq $8, %rbx
    decl %ebp
    jmp 1b
3:  leaq text_newline(%rip), %rsi
    call say
    popq %rbp
    popq %rbx
    ret

.globl memset
memset:
    movq %rdi, %r8
    movl %esi, %eax
    movq %rdx, %rcx
    rep stosb
    movq %r8, %rax
    ret
.globl memcpy
memcpy:
    movq %rdi, %rax
    movq %rdx, %rcx
    rep movsb
    ret

.data
.balign 8
.globl __TVMBackendParallelLaunch, __TVMBackendAllocWorkspace, __TVMBackendFreeWorkspace
__TVMBackendParallelLaunch: .quad parallel_launch
__TVMBackendAllocWorkspace: .quad alloc_workspace
__TVMBackendFreeWorkspace: .quad free_workspace
heap: .quad HEAP
live: .quad 0
current: .quad 0
result: .quad 0, 0
.balign 64
.globl spare
spare: .skip 64                # see emulated_assembly.py
idt_pointer:
    .word 32 * 16 - 1
    .quad IDT
digits: .ascii "0123456789abcdef"
text_calls: .asciz "<calls "
text_bytes: .asciz "><bytes"
text_end: .asciz "bytes>"
text_exception: .asciz "<exception "
text_raised: .asciz "<raised "
text_newline: .asciz ">\n"
text_shutdown: .ascii "Shutdown"
