defmodule Beamr.Module do
  @moduledoc """
  A compiled WebAssembly module.

  A module is immutable: any number of processes may instantiate it at the same time, and
  sending it to another process copies no code. It is made by `Beamr.compile/2` and
  `Beamr.compile_file/2`, and freed when nothing refers to it any more. `serialize/1` keeps it
  beyond that.

      iex> {:ok, module} = Beamr.compile("(module (func (export \\"id\\") (param i32) (result i32) local.get 0))")
      iex> Beamr.Module.exports(module)
      [{"id", {:function, %{params: [:i32], results: [:i32]}}}]
  """

  alias Beamr.{CompileError, Error, Native}

  @enforce_keys [:ref, :imports, :name, :metered]
  defstruct [:ref, :imports, :name, :metered]

  @typedoc "A compiled module. Its fields are private."
  @type t :: %__MODULE__{
          ref: reference(),
          imports: [{String.t(), String.t(), extern_type()}],
          name: String.t() | nil,
          metered: boolean()
        }

  @typedoc """
  The type of a value. References are named by the hierarchy they belong to: `:funcref` and
  `:externref` can be used from Elixir, of the others only null (nil) can.
  """
  @type value_type ::
          :i32 | :i64 | :f32 | :f64 | :v128 | :funcref | :externref | :anyref | :exnref | :contref

  @typedoc """
  The type of an import or export.

  Limits of memories are in pages of `page_size` bytes, limits of tables in elements; a
  `maximum` of nil means that the module sets none. `index_type` is `:i64` for memories and
  tables that are addressed with 64 bits.
  """
  @type extern_type ::
          {:function, %{params: [value_type()], results: [value_type()]}}
          | {:memory,
             %{
               minimum: non_neg_integer(),
               maximum: non_neg_integer() | nil,
               index_type: :i32 | :i64,
               page_size: pos_integer(),
               shared: boolean()
             }}
          | {:global, %{type: value_type(), mutable: boolean()}}
          | {:table,
             %{
               element: value_type(),
               minimum: non_neg_integer(),
               maximum: non_neg_integer() | nil,
               index_type: :i32 | :i64
             }}
          | {:tag, %{params: [value_type()]}}

  @doc false
  @spec from_native(reference(), boolean()) :: t()
  def from_native(ref, metered) do
    %__MODULE__{
      ref: ref,
      imports: Native.module_imports(ref),
      name: Native.module_name(ref),
      metered: metered
    }
  end

  @doc """
  The compiled module as a binary, from which `deserialize_trusted/2` has it again without
  compiling: on nodes with the same version of Beamr and the same kind of processor.

      iex> module = Beamr.compile!("(module $calculator)")
      iex> module |> Beamr.Module.serialize() |> Beamr.Module.deserialize_trusted!() |> Beamr.Module.name()
      "calculator"
  """
  @spec serialize(t()) :: binary()
  def serialize(%__MODULE__{ref: ref}), do: Native.artifact_write(ref)

  @doc """
  The module that `serialize/1` made a binary of.

  The binary is machine code, and is run as it is. **Give it nothing that comes from anyone you do
  not trust with the whole node**: it is checked for accidents, not for malice, and somebody who
  wants to can make one that does anything.

  With the options `:fuel`, `:deterministic` or `:compact` (see `Beamr.compile/2`) the module must
  have been compiled with just these; without options it has those it was compiled with.

  Fails with `Beamr.CompileError`: `:damaged` for what is no serialized module, or not as it was
  written; `:incompatible` for one of another version or processor, or with other options.

      iex> module = Beamr.compile!("(module)", fuel: true)
      iex> {:ok, copy} = module |> Beamr.Module.serialize() |> Beamr.Module.deserialize_trusted()
      iex> Beamr.Module.metered?(copy)
      true
      iex> {:error, error} = Beamr.Module.deserialize_trusted("(module)")
      iex> error.reason
      :damaged
  """
  @spec deserialize_trusted(binary(), keyword()) :: {:ok, t()} | {:error, CompileError.t()}
  def deserialize_trusted(binary, opts \\ []) when is_binary(binary) and is_list(opts) do
    expected = if opts != [], do: Beamr.engine_options!(opts)

    case Native.artifact_read(binary, expected) do
      {:ok, {ref, metered}} -> {:ok, from_native(ref, metered)}
      {:error, reason} -> {:error, Error.compile(reason)}
    end
  end

  @doc "As `deserialize_trusted/2`, but raises the error."
  @spec deserialize_trusted!(binary(), keyword()) :: t()
  def deserialize_trusted!(binary, opts \\ []) do
    binary |> deserialize_trusted(opts) |> Error.unwrap!()
  end

  @doc """
  Whether the module was compiled with `fuel: true`, so that its instances use fuel.

      iex> Beamr.Module.metered?(Beamr.compile!("(module)"))
      false
  """
  @spec metered?(t()) :: boolean()
  def metered?(%__MODULE__{metered: metered}), do: metered

  @doc """
  What the module imports, in its own order: `{module, name, type}`.

      iex> module = Beamr.compile!(~s|(module (import "env" "log" (func (param i32 i32))))|)
      iex> Beamr.Module.imports(module)
      [{"env", "log", {:function, %{params: [:i32, :i32], results: []}}}]
  """
  @spec imports(t()) :: [{module :: String.t(), name :: String.t(), extern_type()}]
  def imports(%__MODULE__{imports: imports}), do: imports

  @doc """
  What the module exports, in its own order: `{name, type}`.

      iex> module = Beamr.compile!(~s|(module (memory (export "memory") 1 2))|)
      iex> Beamr.Module.exports(module)
      [{"memory", {:memory, %{minimum: 1, maximum: 2, index_type: :i32, page_size: 65536, shared: false}}}]
  """
  @spec exports(t()) :: [{name :: String.t(), extern_type()}]
  def exports(%__MODULE__{ref: ref}), do: Native.module_exports(ref)

  @doc """
  The name that the module gives itself in its name section, or nil.

      iex> Beamr.Module.name(Beamr.compile!("(module $calculator)"))
      "calculator"
  """
  @spec name(t()) :: String.t() | nil
  def name(%__MODULE__{name: name}), do: name

  @doc """
  The module's custom sections, in its own order: name and size in bytes.

      iex> module = Beamr.compile!(~s|(module (@custom "note" "hello"))|)
      iex> Beamr.Module.custom_sections(module)
      [{"note", 5}]
  """
  @spec custom_sections(t()) :: [{name :: String.t(), size :: non_neg_integer()}]
  def custom_sections(%__MODULE__{ref: ref}), do: Native.module_custom_sections(ref)

  @doc false
  @spec format_type(extern_type()) :: String.t()
  def format_type({:function, %{params: params, results: results}}) do
    "function (#{Enum.join(params, ", ")}) -> (#{Enum.join(results, ", ")})"
  end

  def format_type({:memory, type}), do: "memory of #{limits(type)} pages (#{type.index_type})"

  def format_type({:table, type}),
    do: "table of #{limits(type)} #{type.element} (#{type.index_type})"

  def format_type({:global, %{type: type, mutable: true}}), do: "mutable global #{type}"
  def format_type({:global, %{type: type, mutable: false}}), do: "global #{type}"
  def format_type({:tag, %{params: params}}), do: "tag (#{Enum.join(params, ", ")})"

  defp limits(%{minimum: minimum, maximum: nil}), do: "#{minimum} or more"
  defp limits(%{minimum: minimum, maximum: maximum}), do: "#{minimum} to #{maximum}"

  @doc false
  @spec describe(value_type()) :: String.t()
  def describe(:i32), do: "an i32 (an integer from -2147483648 to 4294967295)"

  def describe(:i64),
    do: "an i64 (an integer from -9223372036854775808 to 18446744073709551615)"

  def describe(type) when type in [:f32, :f64],
    do: "an #{type} (a number in its range, or one of the atoms nan, infinity and neg_infinity)"

  def describe(:v128), do: "a v128 (a binary of 16 bytes)"
  def describe(:funcref), do: "a funcref (nil or a function of the same instance)"
  def describe(:externref), do: "an externref (any term)"
  def describe(type), do: "a null #{type} (nil)"

  defimpl Inspect do
    def inspect(%{name: nil}, _opts), do: "#Beamr.Module<unnamed>"
    def inspect(%{name: name}, _opts), do: "#Beamr.Module<#{name}>"
  end
end
