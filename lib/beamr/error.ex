defmodule Beamr.CompileError do
  @moduledoc """
  Source that is no module this engine can run.

  | `reason` | what is wrong |
  |---|---|
  | `:invalid_wasm` | malformed or invalid WebAssembly; `offset` is the byte it was noticed at |
  | `:invalid_wat` | WebAssembly text that does not parse; `line` and `column` count from 1 |
  | `:invalid_utf8` | neither WebAssembly nor text; `offset` is the first byte that is no UTF-8 |
  | `:unsupported` | a WebAssembly feature that this engine does not have |
  | `:legacy_exceptions` | the old exception opcodes; Binaryen's `wasm-opt --translate-to-exnref` rewrites them |
  | `:component` | a component; only core modules can be run |
  | `:damaged` | no serialized module, or one that is not as it was written |
  | `:incompatible` | a serialized module of another version or processor, or with other options; `detail` says which |
  | `{:file, posix}` | the file at `path` could not be read |
  | `:system` | the engine could not be set up or its compiler failed; `detail` says how |

  `detail` is the engine's own text.
  """

  defexception [:reason, :detail, :offset, :line, :column, :path]

  @type t :: %__MODULE__{
          reason:
            :invalid_wasm
            | :invalid_wat
            | :invalid_utf8
            | :unsupported
            | :legacy_exceptions
            | :component
            | :damaged
            | :incompatible
            | :system
            | {:file, File.posix()},
          detail: String.t() | nil,
          offset: non_neg_integer() | nil,
          line: pos_integer() | nil,
          column: pos_integer() | nil,
          path: Path.t() | nil
        }

  @impl true
  def message(%{path: nil} = error), do: text(error)
  def message(%{path: path} = error), do: "#{path}: #{text(error)}"

  defp text(%{reason: {:file, posix}}), do: "cannot be read: #{:file.format_error(posix)}"

  defp text(%{reason: :invalid_wat} = e),
    do: "invalid WebAssembly text at line #{e.line}, column #{e.column}: #{e.detail}"

  defp text(%{reason: :invalid_utf8} = e),
    do:
      "neither a WebAssembly module (which begins with \"\\0asm\") nor WebAssembly text: " <>
        "invalid UTF-8 at byte #{e.offset}"

  defp text(%{reason: :invalid_wasm} = e), do: "invalid WebAssembly#{place(e)}: #{e.detail}"

  defp text(%{reason: :unsupported} = e),
    do: "unsupported WebAssembly feature#{place(e)}: #{e.detail}"

  defp text(%{reason: :legacy_exceptions} = e),
    do:
      "the module uses the legacy exception-handling opcodes, which are not supported#{place(e)}; " <>
        "rewrite it with Binaryen's wasm-opt --translate-to-exnref (or compile it with the " <>
        "standard exception handling of your toolchain)"

  defp text(%{reason: :component}),
    do: "this is a WebAssembly component; only core modules are supported"

  defp text(%{reason: :damaged}),
    do: "not a serialized module, or one that has been damaged since it was written"

  defp text(%{reason: :incompatible} = e),
    do: "the serialized module cannot be used here: #{e.detail}"

  defp text(%{reason: :system} = e), do: "the engine failed: #{e.detail}"

  defp place(%{offset: nil}), do: ""

  defp place(%{offset: offset}),
    do: " at byte #{offset} (0x#{Integer.to_string(offset, 16) |> String.downcase()})"
end

defmodule Beamr.LinkError do
  @moduledoc """
  Imports that were not given, or not as the module wants them: all of them in one error.

  `imports` has a map for each, in the module's order:

    * `:module` and `:name`, as the module imports it;
    * `:problem`, see below;
    * `:wanted`: the type in the module, see `t:Beamr.Module.extern_type/0`;
    * `:given`: what was given instead: of functions with a signature, the signature or a list
      of them;
    * `:host`: only where it is missing, the host that has it and was not given, see `Beamr.Host`.

  | `problem` | what is wrong | further keys |
  |---|---|---|
  | `:missing` | nothing was given | |
  | `:type` | it is something else that was given | |
  | `:value` | the value of a global is not of its type, or outside its range | |
  | `:too_small` | a memory or table begins with less than the module requires | `:required`, `:provided` |
  | `:too_large` | it begins with more, or may grow to more, than the module or its index type allows, a table with more than 10,000,000 elements | `:required`, `:provided` |
  | `:no_maximum` | it has no maximum, and the module requires one | `:required`, `:provided` (nil) |

  `:required` is the least or the most there may be, `:provided` what was given: pages of a memory,
  elements of a table.
  """

  defexception reason: :imports, imports: []

  @typedoc "One import that is not satisfied."
  @type problem :: %{
          required(:module) => String.t(),
          required(:name) => String.t(),
          required(:problem) => :missing | :type | :value | :too_small | :too_large | :no_maximum,
          required(:wanted) => Beamr.Module.extern_type(),
          required(:given) => term(),
          optional(:host) => module(),
          optional(:required) => non_neg_integer(),
          optional(:provided) => non_neg_integer() | nil
        }
  @type t :: %__MODULE__{reason: :imports, imports: [problem(), ...]}

  @impl true
  def message(%{imports: imports}) do
    lines = Enum.map(imports, &("\n  * " <> line(&1)))
    "the module's imports are not satisfied:#{lines}"
  end

  defp line(%{problem: :missing, host: host} = import) do
    "#{name(import)} is missing: #{Beamr.Module.format_type(import.wanted)}; it belongs to " <>
      "#{inspect(host)}, which is not among the hosts"
  end

  defp line(%{problem: :missing} = import) do
    "#{name(import)} is missing: #{Beamr.Module.format_type(import.wanted)}#{missing_hint(import)}"
  end

  defp line(%{problem: :type} = import) do
    "#{name(import)} has the wrong type: #{Beamr.Module.format_type(import.wanted)} is wanted" <>
      "#{hint(import.wanted)}, given: #{given(import.given)}"
  end

  defp line(%{problem: :value, wanted: {:global, %{type: type}}} = import) do
    "#{name(import)} must be #{Beamr.Module.describe(type)}, given: #{inspect(import.given)}"
  end

  defp line(%{problem: :too_small} = import) do
    "#{name(import)} is too small: #{import.required} #{unit(import)} are required, " <>
      "given: #{import.provided}"
  end

  defp line(%{problem: :too_large} = import) do
    "#{name(import)} is too large: at most #{import.required} #{unit(import)} are allowed, " <>
      "given: #{import.provided}"
  end

  defp line(%{problem: :no_maximum} = import) do
    "#{name(import)} has no maximum: at most #{import.required} #{unit(import)} are allowed"
  end

  defp given({:function, %{params: _, results: _}} = type), do: Beamr.Module.format_type(type)
  defp given([{:function, _type} | _] = types), do: Enum.map_join(types, " or ", &given/1)
  defp given(other), do: inspect(other)

  defp unit(%{wanted: {:memory, _type}}), do: "pages"
  defp unit(%{wanted: {:table, _type}}), do: "elements"

  defp name(import), do: "#{inspect(import.module)} #{inspect(import.name)}"

  defp missing_hint(%{module: "wasi_snapshot_preview1"}) do
    " (a function of WASI: the option wasi: [] grants it, see Beamr.WASI)"
  end

  defp missing_hint(import), do: hint(import.wanted)

  defp hint({:function, %{params: params}}) do
    " (an Elixir function of arity #{length(params) + 1}: the instance comes first)"
  end

  defp hint({kind, _type}) when kind in [:memory, :table],
    do: " (#{inspect(kind)} or {#{inspect(kind)}, minimum, maximum})"

  defp hint({:global, _type}), do: " (:global or {:global, value})"
  defp hint(_type), do: ""
end

defmodule Beamr.CallError do
  @moduledoc """
  A call that could not be made, or that the host ended.

  | `reason` | what happened | further fields |
  |---|---|---|
  | `:unknown_function` | no function is exported under this name | `function` |
  | `:arity` | the wrong number of arguments | `wanted`, `given` |
  | `:argument` | an argument is of the wrong type or outside its type's range | `position` (from 1), `wanted`, `given` |
  | `:foreign_function` | a function handle of another instance was called (or something that is no handle), or given as an argument | `position`, `given` for an argument |
  | `:timeout` | the call's time was up | |
  | `:interrupted` | another process called `Beamr.interrupt/1` | |
  | `:closed` | the instance is closed | |
  | `:depth` | calls were nested deeper than `max_depth` | `wanted` |
  | `:result` | the results are not those of `malloc`, or not those of a function that returns the struct | `given` |
  | `:system` | the operating system or the engine refused; `detail` says why | `detail` |

  After all of them but `:closed` and a failed instantiation the instance stays usable.
  """

  defexception [:reason, :function, :wanted, :given, :position, :detail]

  @type t :: %__MODULE__{
          reason:
            :unknown_function
            | :arity
            | :argument
            | :foreign_function
            | :timeout
            | :interrupted
            | :closed
            | :depth
            | :result
            | :system,
          function: term(),
          wanted: term(),
          given: term(),
          position: pos_integer() | nil,
          detail: String.t() | nil
        }

  @impl true
  def message(%{reason: :unknown_function} = e),
    do: "the module exports no function #{inspect(e.function)}"

  def message(%{reason: :arity} = e),
    do: "#{inspect(e.function)} takes #{e.wanted} argument(s), given: #{e.given}"

  def message(%{reason: :argument} = e),
    do:
      "argument #{e.position} of #{inspect(e.function)} must be #{Beamr.Module.describe(e.wanted)}, " <>
        "given: #{inspect(e.given)}"

  def message(%{reason: :foreign_function, position: nil} = e),
    do: "not a function of this instance: #{inspect(e.function)}"

  def message(%{reason: :foreign_function} = e),
    do:
      "argument #{e.position} of #{inspect(e.function)} must be a function of the same instance, " <>
        "given: #{inspect(e.given)}"

  def message(%{reason: :timeout} = e), do: "#{what(e)} timed out"
  def message(%{reason: :interrupted} = e), do: "#{what(e)} was interrupted"
  def message(%{reason: :closed}), do: "the instance is closed"

  def message(%{reason: :depth} = e),
    do: "#{what(e)} would nest calls deeper than max_depth (#{e.wanted})"

  def message(%{reason: :result} = e),
    do: "#{inspect(e.function)} should answer one integer, answered: #{inspect(e.given)}"

  def message(%{reason: :system} = e), do: "#{what(e)} failed: #{e.detail}"

  defp what(%{function: nil}), do: "instantiation"
  defp what(%{function: function}), do: "the call of #{inspect(function)}"
end

defmodule Beamr.Trap do
  @moduledoc """
  A fault that ended a guest's call. The instance stays usable, its memory as the trap left it.

  `reason` is the trap's code:

    * of the WebAssembly specification: `:unreachable`, `:memory_out_of_bounds`,
      `:table_out_of_bounds`, `:indirect_call_to_null`, `:bad_signature`, `:integer_overflow`,
      `:integer_divide_by_zero`, `:bad_conversion_to_integer`, `:null_reference`,
      `:array_out_of_bounds`, `:cast_failure`, `:unaligned_atomic`,
      `:atomic_wait_on_unshared_memory`, `:uncaught_exception`, `:unhandled_tag`,
      `:continuation_already_consumed`;
    * of a limit: `:stack_overflow`, `:out_of_fuel`, `:allocation_too_large`,
      `:gc_heap_out_of_memory`;
    * `:other`, for a code that this version has no name for.

  `backtrace` lists the guest's frames, innermost first; `name` is nil where the module carries
  no names, `offset` is the place in the module's bytes.
  """

  defexception [:reason, :function, backtrace: []]

  @typedoc "A frame of the guest's stack."
  @type frame :: %{
          name: String.t() | nil,
          index: non_neg_integer(),
          offset: non_neg_integer() | nil
        }
  @type t :: %__MODULE__{reason: atom(), function: term(), backtrace: [frame()]}

  @impl true
  def message(%{reason: reason, backtrace: backtrace}) do
    "the guest trapped: #{describe(reason)}" <> Enum.map_join(backtrace, &("\n    " <> line(&1)))
  end

  defp describe(:unreachable), do: "unreachable instruction executed"
  defp describe(:other), do: "unknown trap"
  defp describe(reason), do: reason |> Atom.to_string() |> String.replace("_", " ")

  defp line(%{name: name, index: index, offset: nil}), do: "#{name || "function #{index}"}"

  defp line(%{name: name, index: index, offset: offset}),
    do:
      "#{name || "function #{index}"} at 0x#{Integer.to_string(offset, 16) |> String.downcase()}"
end

defmodule Beamr.ImportError do
  @moduledoc """
  An import's Elixir function that raised, threw, exited, or returned something that is no
  result of the import's type. It ended the guest's call; the instance stays usable.

  `kind`, `reason` and `stacktrace` are as `catch kind, reason` has them (for errors of Erlang
  the reason is Erlang's term); the bang functions raise them again as they were. For a bad
  result, `kind` is `:result`, `reason` is `:bad_result`, `given` is what was returned and
  `wanted` are the result types.
  """

  defexception [:module, :name, :kind, :reason, :wanted, :given, stacktrace: []]

  @type t :: %__MODULE__{
          module: String.t(),
          name: String.t(),
          kind: :error | :throw | :exit | :result,
          reason: term(),
          stacktrace: Exception.stacktrace(),
          wanted: [Beamr.Module.value_type()] | nil,
          given: term()
        }

  @impl true
  def message(%{kind: :result} = e) do
    "the import #{name(e)} must return #{wanted(e.wanted)}, returned: #{inspect(e.given)}"
  end

  def message(%{} = e) do
    "the import #{name(e)} failed: #{Exception.format_banner(e.kind, e.reason, e.stacktrace)}"
  end

  defp name(e), do: "#{inspect(e.module)} #{inspect(e.name)}"

  defp wanted([type]), do: Beamr.Module.describe(type)
  defp wanted(types), do: "a list of #{length(types)} values (#{Enum.join(types, ", ")})"
end

defmodule Beamr.StubError do
  @moduledoc """
  What the stub of an import raises: see `Beamr.Host.stub/3`. It is the `reason` of the
  `Beamr.ImportError` that ends the guest's call.
  """

  defexception reason: :stub, module: nil, name: nil

  @type t :: %__MODULE__{reason: :stub, module: String.t(), name: String.t()}

  @impl true
  def message(e), do: "#{inspect(e.module)} #{inspect(e.name)} is only a stub"
end

defmodule Beamr.MemoryError do
  @moduledoc """
  A memory operation that could not be done; nothing was read or written.

  | `reason` | what is wrong |
  |---|---|
  | `:out_of_bounds` | `offset` + `length` lies past `size` |
  | `:out_of_view` | `offset` + `length` lies past `size`, where both are those of the `Beamr.View` at `pointer` |
  | `:unknown_memory` | the module has no memory named `memory` |
  | `:unterminated` | there is no NUL between `offset` and the end of memory at `size` (or of the view at `pointer`) |
  | `:value_out_of_range` | `given` is no number that `type` can hold |
  | `:invalid_utf8` | `offset` is the first byte that is no UTF-8 |
  | `:cannot_grow` | its own maximum or a limit does not allow the memory of `size` bytes `length` more |
  | `:malloc_failed` | the guest's `malloc` answered 0 for `length` bytes |
  | `:timeout` | the instance was busy with a call for too long to grow its memory |
  | `:closed` | the instance is closed |
  | `:system` | the VM has no memory for the answer; `detail` says more |

  All numbers are bytes, but for `given`, and `index`: the place, from 0, of what is refused among
  the values of an array or the places of `read_many` and `write_many`.
  """

  defexception [
    :reason,
    :memory,
    :offset,
    :length,
    :size,
    :detail,
    :type,
    :given,
    :index,
    :pointer
  ]

  @type t :: %__MODULE__{
          reason:
            :out_of_bounds
            | :out_of_view
            | :unknown_memory
            | :unterminated
            | :value_out_of_range
            | :invalid_utf8
            | :cannot_grow
            | :malloc_failed
            | :timeout
            | :closed
            | :system,
          memory: String.t() | nil,
          offset: non_neg_integer() | nil,
          length: non_neg_integer() | nil,
          size: non_neg_integer() | nil,
          detail: String.t() | nil,
          type: Beamr.IO.type() | nil,
          given: number() | nil,
          index: non_neg_integer() | nil,
          pointer: non_neg_integer() | nil
        }

  @impl true
  def message(%{reason: :out_of_bounds} = e),
    do: "#{e.length} byte(s) at offset #{e.offset} are outside the memory of #{e.size} bytes"

  def message(%{reason: :out_of_view} = e),
    do:
      "#{e.length} byte(s) at offset #{e.offset} are outside the view of #{e.size} bytes at " <>
        "#{e.pointer}"

  def message(%{reason: :unterminated, pointer: pointer} = e) when pointer != nil,
    do:
      "no NUL ends the string at offset #{e.offset} of the view of #{e.size} bytes at #{pointer}"

  def message(%{reason: :unknown_memory} = e),
    do: "the module has no memory #{inspect(e.memory)}"

  def message(%{reason: :unterminated} = e),
    do: "no NUL ends the string at offset #{e.offset} before the end of memory at #{e.size}"

  def message(%{reason: :value_out_of_range} = e),
    do: "#{e.type} at offset #{e.offset} takes #{range(e.type)}, given: #{inspect(e.given)}"

  def message(%{reason: :invalid_utf8} = e), do: "the byte at offset #{e.offset} is no UTF-8"

  def message(%{reason: :cannot_grow} = e),
    do: "the memory of #{e.size} bytes cannot grow by #{e.length} bytes"

  def message(%{reason: :timeout}), do: "waiting for the memory timed out"

  def message(%{reason: :malloc_failed} = e),
    do: "the guest's malloc has no room for #{e.length} byte(s)"

  def message(%{reason: :closed}), do: "the instance is closed"
  def message(%{reason: :system} = e), do: "the memory operation failed: #{e.detail}"

  defp range(:f32), do: "finite numbers up to 3.4028235e38 in magnitude"
  defp range(:f64), do: "finite numbers up to 1.7976931348623157e308 in magnitude"

  defp range(type) do
    {low, high} = Beamr.IO.integer_range(type)
    "integers from #{low} to #{high}"
  end
end

defmodule Beamr.LimitError do
  @moduledoc """
  An instance that would have gone over one of its limits before any of its code ran.

  `reason` is the limit: `:max_memory` (bytes) or `:max_table_elements`; `allowed` is what it
  allows, and `wanted` what the module's memories (or tables) come to with the first that goes
  over it.

  A guest that goes over a limit while it runs meets it as the WebAssembly specification says:
  `memory.grow` and `table.grow` answer -1. Running out of fuel is a `Beamr.Trap`.
  """

  defexception [:reason, :allowed, :wanted]

  @type t :: %__MODULE__{
          reason: :max_memory | :max_table_elements,
          allowed: non_neg_integer(),
          wanted: non_neg_integer()
        }

  @impl true
  def message(%{reason: reason} = e),
    do: "#{reason} allows #{e.allowed}, the module wants at least #{e.wanted}"
end

defmodule Beamr.ExportError do
  @moduledoc """
  A global or table, or the fuel, that could not be read or changed as asked; nothing
  was changed.

  | `reason` | what is wrong | further fields |
  |---|---|---|
  | `:unknown_export` | nothing of this kind is exported, or imported, under this name | |
  | `:immutable` | the global cannot be set | |
  | `:type` | the value is not of the wanted type, or outside its range | `wanted`, `given` |
  | `:foreign_function` | the value is a function of another instance | `given` |
  | `:out_of_bounds` | the index is not below the table's `size` | `given`, `size` |
  | `:cannot_grow` | the table's own maximum or a limit does not allow it | `given`, `size` |
  | `:not_metered` | the module was not compiled with `fuel: true` | |
  | `:timeout` | the instance was busy with a call for too long | |
  | `:closed` | the instance is closed | |
  """

  defexception [:reason, :kind, :name, :wanted, :given, :size]

  @type t :: %__MODULE__{
          reason:
            :unknown_export
            | :immutable
            | :type
            | :foreign_function
            | :out_of_bounds
            | :cannot_grow
            | :not_metered
            | :timeout
            | :closed,
          kind: :global | :table | :fuel,
          name: String.t() | nil,
          wanted: Beamr.Module.value_type() | nil,
          given: term(),
          size: non_neg_integer() | nil
        }

  @impl true
  def message(%{reason: :unknown_export} = e),
    do: "the module has no #{e.kind} #{inspect(e.name)}"

  def message(%{reason: :immutable} = e), do: "#{what(e)} is immutable"

  def message(%{reason: :type} = e),
    do: "#{what(e)} takes #{Beamr.Module.describe(e.wanted)}, given: #{inspect(e.given)}"

  def message(%{reason: :foreign_function} = e),
    do: "#{what(e)} takes functions of its own instance only, given: #{inspect(e.given)}"

  def message(%{reason: :out_of_bounds} = e),
    do: "index #{e.given} is outside #{what(e)} of #{e.size} element(s)"

  def message(%{reason: :cannot_grow} = e),
    do: "#{what(e)} of #{e.size} element(s) cannot grow by #{e.given}"

  def message(%{reason: :not_metered}), do: "the module was not compiled with fuel: true"
  def message(%{reason: :timeout} = e), do: "waiting for #{what(e)} timed out"
  def message(%{reason: :closed}), do: "the instance is closed"

  defp what(%{kind: :fuel}), do: "the fuel"
  defp what(e), do: "the #{e.kind} #{inspect(e.name)}"
end

defmodule Beamr.StructError do
  @moduledoc """
  A value that is none of its layout, or a field that the layout does not have; nothing was
  written.

  `field` is the path to it: names of fields, and indices of arrays, as a list.

  | `reason` | what is wrong | further fields |
  |---|---|---|
  | `:type` | the value is not of the field's type | `wanted`, `given` |
  | `:range` | the number is outside its range | `wanted`: `{type, {low, high}}`, `given` |
  | `:length` | the string is too long, or the bytes or the list are not as many as the field has | `wanted`, `given` |
  | `:nul` | the string has a NUL inside, which would end it | `wanted`, `given` |
  | `:missing_field` | the field was not given | `wanted` |
  | `:unknown_field` | there is no such field | |
  | `:overlap` | the field shares bytes with the field `wanted`, and both were given | `wanted` |
  """

  defexception [:reason, :wanted, :given, field: []]

  @type t :: %__MODULE__{
          reason: :type | :range | :length | :nul | :missing_field | :unknown_field | :overlap,
          field: [atom() | non_neg_integer()],
          wanted: term(),
          given: term()
        }

  @impl true
  def message(%{reason: :range, wanted: {type, {low, high}}} = e),
    do: "#{what(e)} must be #{a(type)} (from #{low} to #{high}), given: #{inspect(e.given)}"

  def message(%{reason: :nul} = e),
    do: "#{what(e)} has a NUL inside, where C would see its end: #{inspect(e.given)}"

  def message(%{reason: reason} = e) when reason in [:type, :length],
    do: "#{what(e)} must be #{describe(e.wanted)}, given: #{inspect(e.given)}"

  def message(%{reason: :missing_field} = e), do: "#{what(e)} is missing"
  def message(%{reason: :unknown_field} = e), do: "the layout has no field #{path(e.field)}"

  def message(%{reason: :overlap} = e),
    do: "#{what(e)} shares bytes with the field #{e.wanted}: only one of them can be given"

  defp what(%{field: []}), do: "the value"
  defp what(%{field: field}), do: "the field #{path(field)}"

  defp path([]), do: "\"\""
  defp path([_ | _] = path), do: Enum.map_join(path, ".", &segment/1)

  # A name that no layout can have may be anything.
  defp segment(name) when is_atom(name) or is_integer(name), do: to_string(name)
  defp segment(other), do: inspect(other)

  defp a(type) when type in [:i8, :i16, :i32, :i64, :f32, :f64], do: "an #{type}"
  defp a(type), do: "a #{type}"

  defp describe(type) when type in [:f32, :f64],
    do: "#{a(type)} (a number, or one of the atoms nan, infinity and neg_infinity)"

  defp describe(:bool), do: "true or false"
  defp describe(:ptr), do: "a pointer (an integer from 0 on)"
  defp describe({:string, n}), do: "a string of fewer than #{n} bytes"
  defp describe({:bytes, n}), do: "a binary of #{n} bytes"

  defp describe({:enum, names}),
    do: "an integer or one of #{Enum.map_join(names, ", ", &inspect/1)}"

  defp describe({:array, _type, n}), do: "a list of #{n} values"
  defp describe({:struct, names}), do: "a map with #{Enum.map_join(names, ", ", &inspect/1)}"
  defp describe(type), do: "#{a(type)} (an integer)"
end

defmodule Beamr.AllocatorError do
  @moduledoc """
  An allocator that could not do as asked; everything is as it was.

  | `reason` | what is wrong | further fields |
  |---|---|---|
  | `:size` | less than one byte was asked for | `size` |
  | `:alignment` | the alignment is no power of two | `alignment` |
  | `:overflow` | the region has too little room: `needed` bytes, padding included, of `available` | `size`, `needed`, `available`, `base` |
  | `:overlap` | a live region of the same memory has some of these bytes | `base`, `limit`, `other` |
  | `:uncovered` | memory ends at `available`, before the region does at `needed`, and `grow: false` was given | `needed`, `available`, `base` |
  | `:no_mark` | `pop` without a mark | |
  | `:unknown_pointer` | the pointer is none that is allocated here | `pointer` |
  | `:timeout` | others were growing the memory for too long | |
  | `:closed` | the allocator is closed, or its owner or guest is gone | |

  `other` is a map with the `kind` of the other allocator (`:bump` or `:stack`), its `base`, its
  `limit` (the first address behind it, or `:infinity`) and its `owner`. All numbers are bytes.
  """

  defexception [
    :reason,
    :size,
    :alignment,
    :needed,
    :available,
    :base,
    :limit,
    :other,
    :pointer
  ]

  @type t :: %__MODULE__{
          reason:
            :size
            | :alignment
            | :overflow
            | :overlap
            | :uncovered
            | :no_mark
            | :unknown_pointer
            | :timeout
            | :closed,
          size: integer() | nil,
          alignment: integer() | nil,
          needed: non_neg_integer() | nil,
          available: non_neg_integer() | nil,
          base: non_neg_integer() | nil,
          limit: non_neg_integer() | :infinity | nil,
          other: map() | nil,
          pointer: non_neg_integer() | nil
        }

  @impl true
  def message(%{reason: :size} = e), do: "#{e.size} bytes cannot be allocated"
  def message(%{reason: :alignment} = e), do: "the alignment #{e.alignment} is no power of two"

  def message(%{reason: :overflow} = e),
    do: "the region at #{e.base} has #{e.available} byte(s) left, needed: #{e.needed}"

  def message(%{reason: :overlap, other: other} = e) do
    "the region #{region(e)} overlaps that of a #{other.kind} allocator, #{region(other)}, " <>
      "owned by #{inspect(other.owner)}"
  end

  def message(%{reason: :uncovered} = e),
    do: "the region at #{e.base} ends at #{e.needed}, the memory has #{e.available} bytes"

  def message(%{reason: :no_mark}), do: "there is no mark to go back to"

  def message(%{reason: :unknown_pointer} = e),
    do: "nothing is allocated at #{e.pointer} by this allocator"

  def message(%{reason: :timeout}), do: "waiting for the memory to grow timed out"
  def message(%{reason: :closed}), do: "the allocator is closed"

  defp region(%{base: base, limit: :infinity}), do: "from #{base} on"
  defp region(%{base: base, limit: limit}), do: "from #{base} to #{limit - 1}"
end

defmodule Beamr.Exit do
  @moduledoc """
  A WASI guest that ended its program by `proc_exit`, as C's `exit` does. The instance stays
  usable, though few programs expect to be called again.

  `code` is the exit code, from 0 to 4294967295 (C's `exit(-1)`). Where a function without
  results, as `_start` is, exits with code 0, its call answers `{:ok, []}` instead.
  """

  defexception [:code, :function]

  @type t :: %__MODULE__{code: non_neg_integer(), function: term()}

  @impl true
  def message(%{code: code}), do: "the guest exited with code #{code}"
end

defmodule Beamr.WASIError do
  @moduledoc """
  Something that `wasi:` grants and that could not be had.

  `path` is the directory of the host that could not be opened; `reason` is `:enoent`,
  `:enotdir`, `:eacces`, or else `:system`, and `detail` what the system says. Without a `path`
  the system refused Beamr the thread that WASI's clocks need.
  """

  defexception [:reason, :path, :detail]

  @type t :: %__MODULE__{
          reason: :enoent | :enotdir | :eacces | :system,
          path: Path.t() | nil,
          detail: String.t() | nil
        }

  @impl true
  def message(%{path: nil} = e), do: "WASI could not be started: #{e.detail}"

  def message(%{reason: :system} = e), do: "#{e.path} cannot be granted: #{e.detail}"

  def message(e), do: "#{e.path} cannot be granted: #{:file.format_error(e.reason)}"
end

defmodule Beamr.Error do
  @moduledoc false
  # Makes exceptions of the reasons that the NIFs answer.

  alias Beamr.{
    CallError,
    CompileError,
    Exit,
    ExportError,
    ImportError,
    LimitError,
    MemoryError,
    Trap
  }

  @spec compile(term(), Path.t() | nil) :: CompileError.t()
  def compile({kind, detail, offset, {line, column}}, path \\ nil) do
    reason =
      case kind do
        :binary -> :invalid_wasm
        :text -> :invalid_wat
        :utf8 -> :invalid_utf8
        kind -> kind
      end

    %CompileError{
      reason: reason,
      detail: detail,
      offset: offset,
      line: line,
      column: column,
      path: path
    }
  end

  @doc "What ended the call of `function` (nil for an instantiation) with `args`."
  @spec call(term(), term(), list()) :: Exception.t()
  def call(%{__exception__: true} = exception, _function, _args), do: exception

  def call({:trap, code, frames}, function, _args) do
    %Trap{reason: code, function: function, backtrace: Enum.map(frames, &frame/1)}
  end

  def call({:arity, wanted, given}, function, _args) do
    %CallError{reason: :arity, function: function, wanted: wanted, given: given}
  end

  def call({:argument, position, type, problem}, function, args) do
    %CallError{
      reason: if(problem == :funcref, do: :foreign_function, else: :argument),
      function: function,
      position: position,
      wanted: type,
      given: Enum.at(args, position - 1)
    }
  end

  def call({:exit, code}, function, _args), do: %Exit{code: code, function: function}

  def call({:depth, limit}, function, _args) do
    %CallError{reason: :depth, function: function, wanted: limit}
  end

  def call({:limit, limit, allowed, wanted}, _function, _args) do
    %LimitError{reason: limit, allowed: allowed, wanted: wanted}
  end

  def call({:system, detail}, function, _args) do
    %CallError{reason: :system, function: function, detail: detail}
  end

  def call(:panicked, function, _args) do
    detail = "a defect in Beamr's native library; the instance is closed"
    %CallError{reason: :system, function: function, detail: detail}
  end

  def call(:funcref, function, _args) do
    %CallError{reason: :foreign_function, function: function}
  end

  def call(reason, function, _args) when is_atom(reason) do
    %CallError{reason: reason, function: function}
  end

  @doc "What kept an operation on the export `{kind, name}` from being done."
  @spec export(term(), {atom(), String.t() | nil}, term()) :: ExportError.t()
  def export(reason, {kind, name}, given) do
    error = %ExportError{kind: kind, name: name, given: given}

    case reason do
      {:mismatch, wanted} ->
        %{error | reason: :type, wanted: wanted}

      {reason, size} when reason in [:out_of_bounds, :cannot_grow] ->
        %{error | reason: reason, size: size}

      :funcref ->
        %{error | reason: :foreign_function}

      reason ->
        %{error | reason: reason}
    end
  end

  @spec memory(term(), non_neg_integer() | nil, non_neg_integer() | nil) :: MemoryError.t()
  def memory({:system, detail}, offset, length) do
    %MemoryError{reason: :system, detail: detail, offset: offset, length: length}
  end

  def memory({reason, size}, offset, length) do
    %MemoryError{reason: reason, offset: offset, length: length, size: size}
  end

  def memory(reason, offset, length) when is_atom(reason) do
    %MemoryError{reason: reason, offset: offset, length: length}
  end

  @doc "The value of an ok tuple; raises the exception of an error tuple."
  @spec unwrap!(:ok | {:ok, value} | {:error, Exception.t()}) :: value | :ok when value: term()
  def unwrap!(:ok), do: :ok
  def unwrap!({:ok, value}), do: value

  def unwrap!({:error, %ImportError{kind: kind} = error}) when kind != :result do
    :erlang.raise(kind, error.reason, error.stacktrace)
  end

  def unwrap!({:error, exception}), do: raise(exception)

  defp frame({name, index, offset}), do: %{name: name, index: index, offset: offset}
end
