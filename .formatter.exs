[
  inputs: ["{mix,.formatter}.exs", "{lib,test,bench,examples}/**/*.{ex,exs}"],
  line_length: 98,
  locals_without_parens: [field: 2, field: 3],
  export: [locals_without_parens: [field: 2, field: 3]]
]
