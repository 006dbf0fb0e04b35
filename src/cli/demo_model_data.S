// The files of assets/demo-model as bytes of the program (cli/demo_model.cpp lists them).
#if defined(__APPLE__)
#define SYMBOL(name) _##name
.const_data
#else
#define SYMBOL(name) name
.section .rodata
#endif

#define EMBED(name, file)               \
  .globl SYMBOL(name##_begin);          \
  .globl SYMBOL(name##_end);            \
  .balign 16;                           \
  SYMBOL(name##_begin): .incbin file;   \
  SYMBOL(name##_end): .byte 0

EMBED(demo_config, "config.json")
EMBED(demo_tokenizer, "tokenizer.json")
EMBED(demo_tokenizer_config, "tokenizer_config.json")
EMBED(demo_chat_template, "chat_template.jinja")
EMBED(demo_weights, "model.safetensors")

#if defined(__linux__) && defined(__ELF__)
.section .note.GNU-stack,"",%progbits
#endif
