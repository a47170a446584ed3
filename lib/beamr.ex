defmodule Beamr do
  @external_resource "README.md"
  @moduledoc "README.md"
             |> File.read!()
             |> String.split("<!-- moduledoc -->")
             |> Enum.at(1)

  alias Beamr.{Error, Instance, Native}

  @typedoc "Whatever addresses a guest."
  @type guest :: Instance.t()

  @typedoc "A function of one instance, as `funcref` values come from its guest. Opaque."
  @type funcref :: reference()

  @typedoc """
  A WebAssembly value as a term.

  | WebAssembly | to the guest | from the guest |
  |---|---|---|
  | i32, i64 | integer, in the signed or the unsigned range of its width | signed integer |
  | f32, f64 | float, integer, `:nan`, `:infinity`, `:neg_infinity` | float, or one of the atoms |
  | v128 | 16-byte binary, the lowest lane first | the same |
  | funcref | nil or a function of the same instance | the same |
  | externref | any term | the same term |

  The BEAM has no NaNs and infinities, so they are always atoms. A finite number that rounds to
  an infinite f32 is refused.
  """
  @type value :: integer() | float() | :nan | :infinity | :neg_infinity | binary() | term()

  @call_timeout 5_000
  @max_depth 1_000

  @doc """
  Compiles WebAssembly bytes or WebAssembly text.

  Compilation takes a dirty scheduler, never a normal one. Fails with `Beamr.CompileError`.

  There are no options yet; the argument is there for those to come.

      iex> {:ok, %Beamr.Module{}} = Beamr.compile("(module)")
      iex> {:error, error} = Beamr.compile("(module (func (export \\"f\\") i32.add))")
      iex> error.reason
      :invalid_wasm
  """
  @spec compile(binary(), keyword()) :: {:ok, Beamr.Module.t()} | {:error, Beamr.CompileError.t()}
  def compile(source, opts \\ []) when is_binary(source) and is_list(opts) do
    compile(source, opts, nil)
  end

  defp compile(source, opts, path) do
    [] = Keyword.validate!(opts, [])

    case Native.module_compile(source, []) do
      {:ok, ref} -> {:ok, Beamr.Module.from_native(ref)}
      {:error, reason} -> {:error, Error.compile(reason, path)}
    end
  end

  @doc "As `compile/2`, but raises the error."
  @spec compile!(binary(), keyword()) :: Beamr.Module.t()
  def compile!(source, opts \\ []), do: source |> compile(opts) |> Error.unwrap!()

  @doc """
  Compiles the file at `path`, whichever of the two formats it holds.

  Fails with `Beamr.CompileError`, with `reason: {:file, posix}` where the file cannot be read.

      iex> {:error, error} = Beamr.compile_file("no/such.wasm")
      iex> error.reason
      {:file, :enoent}
  """
  @spec compile_file(Path.t(), keyword()) ::
          {:ok, Beamr.Module.t()} | {:error, Beamr.CompileError.t()}
  def compile_file(path, opts \\ []) when is_list(opts) do
    case File.read(path) do
      {:ok, source} -> compile(source, opts, path)
      {:error, posix} -> {:error, %Beamr.CompileError{reason: {:file, posix}, path: path}}
    end
  end

  @doc "As `compile_file/2`, but raises the error."
  @spec compile_file!(Path.t(), keyword()) :: Beamr.Module.t()
  def compile_file!(path, opts \\ []), do: path |> compile_file(opts) |> Error.unwrap!()

  @doc """
  Makes an instance of a module, or of WebAssembly bytes or text, and runs its start function.

  Options:

    * `:imports` - what the module imports: a map of maps of functions, see
      `t:Beamr.Instance.imports/0`. All that is missing or does not fit is listed in one
      `Beamr.LinkError`; what the module does not import is ignored.
    * `:timeout` - milliseconds that the start function may take, or `:infinity`;
      #{@call_timeout} unless given.
    * `:max_depth` - how deep calls from host to guest may be nested in one another on this
      instance; #{@max_depth} unless given.

  Fails with `Beamr.CompileError`, `Beamr.LinkError`, or whatever ended the start function: see
  `call/4`.

      iex> source = ~s|(module (import "env" "double" (func $double (param i32) (result i32)))
      ...>                     (func (export "f") (result i32) (call $double (i32.const 21))))|
      iex> {:ok, wasm} = Beamr.instantiate(source, imports: %{"env" => %{"double" => fn _wasm, n -> n * 2 end}})
      iex> Beamr.call(wasm, "f", [])
      {:ok, [42]}
  """
  @spec instantiate(Beamr.Module.t() | binary(), keyword()) ::
          {:ok, Instance.t()} | {:error, Exception.t()}
  def instantiate(module, opts \\ [])

  def instantiate(%Beamr.Module{} = module, opts) when is_list(opts) do
    opts = Keyword.validate!(opts, imports: %{}, timeout: @call_timeout, max_depth: @max_depth)

    check!(is_map(opts[:imports]), :imports, opts[:imports], "a map of maps of functions")
    check!(positive?(opts[:max_depth]), :max_depth, opts[:max_depth], "a positive integer")
    check_timeout!(opts[:timeout])
    Instance.new(module, opts[:imports], opts[:timeout], opts[:max_depth])
  end

  def instantiate(source, opts) when is_binary(source) and is_list(opts) do
    with {:ok, module} <- compile(source), do: instantiate(module, opts)
  end

  @doc "As `instantiate/2`, but raises the error."
  @spec instantiate!(Beamr.Module.t() | binary(), keyword()) :: Instance.t()
  def instantiate!(module, opts \\ []), do: module |> instantiate(opts) |> Error.unwrap!()

  @doc """
  Calls an exported function, or a `t:funcref/0`, with a list of arguments; answers a list of
  its results. How values are converted: `t:value/0`.

  The call runs in the calling process, and so do the imports that the guest calls. A long call
  holds no scheduler, and ends when its process dies.

  Options:

    * `:timeout` - milliseconds that the call may take, imports and waiting for a busy instance
      included, or `:infinity`; #{@call_timeout} unless given. Past it the guest is ended.

  Fails with

    * `Beamr.CallError`: the call cannot be made, or was ended from outside;
    * `Beamr.Trap`: the guest trapped;
    * `Beamr.ImportError`: an import failed.

      iex> wasm = Beamr.instantiate!(~s|(module (func (export "div") (param i32 i32) (result i32)
      ...>   (i32.div_s (local.get 0) (local.get 1))))|)
      iex> Beamr.call(wasm, "div", [-7, 2])
      {:ok, [-3]}
      iex> {:error, trap} = Beamr.call(wasm, "div", [1, 0])
      iex> trap.reason
      :integer_divide_by_zero
      iex> {:error, error} = Beamr.call(wasm, "div", [1, :two])
      iex> Exception.message(error)
      ~s|argument 2 of "div" must be an i32 (an integer from -2147483648 to 4294967295), given: :two|
  """
  @spec call(guest(), String.t() | funcref(), [value()], keyword()) ::
          {:ok, [value()]} | {:error, Exception.t()}
  def call(guest, function, args, opts \\ [])

  def call(%Instance{} = guest, function, args, [])
      when (is_binary(function) or is_reference(function)) and length(args) >= 0 do
    Instance.call(guest, function, args, @call_timeout, false)
  end

  def call(%Instance{} = guest, function, args, opts)
      when (is_binary(function) or is_reference(function)) and length(args) >= 0 and
             is_list(opts) do
    [timeout: timeout] = Keyword.validate!(opts, timeout: @call_timeout)
    check_timeout!(timeout)
    Instance.call(guest, function, args, timeout, false)
  end

  @doc """
  As `call/4`, but raises the error. What an import raised, threw or exited with comes out of it
  as it was.
  """
  @spec call!(guest(), String.t() | funcref(), [value()], keyword()) :: [value()]
  def call!(guest, function, args, opts \\ []) do
    guest |> call(function, args, opts) |> Error.unwrap!()
  end

  @doc """
  Frees an instance at once, memory and all. Whatever uses it afterwards gets
  `reason: :closed`, and so does a call that is in flight. Closing it again is `:ok` too.

      iex> wasm = Beamr.instantiate!("(module)")
      iex> Beamr.close(wasm)
      :ok
      iex> {:error, error} = Beamr.IO.size(wasm)
      iex> error.reason
      :closed
  """
  @spec close(Instance.t()) :: :ok
  def close(%Instance{ref: ref}) do
    case Native.instance_close(ref) do
      :dirty -> Native.instance_close_dirty(ref)
      :ok -> :ok
    end
  end

  defp check_timeout!(timeout) do
    valid = timeout == :infinity or (is_integer(timeout) and timeout in 0..0xFFFFFFFF)
    check!(valid, :timeout, timeout, "milliseconds from 0 to 4294967295, or :infinity")
  end

  defp positive?(n), do: is_integer(n) and n > 0

  defp check!(true, _name, _value, _wanted), do: :ok

  defp check!(false, name, value, wanted) do
    raise ArgumentError, "#{inspect(name)} must be #{wanted}, given: #{inspect(value)}"
  end
end
