defmodule Beamr.Native do
  @moduledoc false
  # The NIFs of native/beamr, stubs and specs and nothing else. Names are <rust file>_<verb>.
  #
  # An operation that can hold up a normal scheduler is there twice: the plain one answers
  # `:dirty` instead of waiting or working for long, and the one named `_dirty` does it all.

  @on_load :load

  @type module_ref :: reference()
  @type instance_ref :: reference()
  @type wasi_ref :: reference()
  @type reason :: term()
  @type import_index :: non_neg_integer()
  @type step ::
          {:ok, [term()]}
          | {:error, reason()}
          | :yield
          | {:import, import_index(), [term()]}
          | {:wait, reference()}
          | {:queue, reference()}
          | :dirty

  @doc false
  def load do
    # Code that is loaded again loads its library again, which needs the old code to be gone.
    :code.purge(__MODULE__)

    path =
      case System.get_env("BEAMR_NATIVE_PATH") do
        nil -> Path.join(:code.priv_dir(:beamr), "native/beamr")
        path -> Path.rootname(path, ".so")
      end

    :erlang.load_nif(String.to_charlist(path), Application.get_env(:beamr, :max_stack))
  end

  @spec module_compile(binary(), [atom()], cache :: Path.t() | nil) ::
          {:ok, module_ref()} | {:error, reason()}
  def module_compile(_source, _options, _cache), do: unloaded()

  @spec module_imports(module_ref()) :: [{String.t(), String.t(), Beamr.Module.extern_type()}]
  def module_imports(_module), do: unloaded()

  @spec module_exports(module_ref()) :: [{String.t(), Beamr.Module.extern_type()}]
  def module_exports(_module), do: unloaded()

  @spec module_name(module_ref()) :: String.t() | nil
  def module_name(_module), do: unloaded()

  @spec module_custom_sections(module_ref()) :: [{String.t(), non_neg_integer()}]
  def module_custom_sections(_module), do: unloaded()

  @spec artifact_write(module_ref()) :: binary()
  def artifact_write(_module), do: unloaded()

  @spec artifact_read(binary(), [atom()] | nil) ::
          {:ok, {module_ref(), metered :: boolean()}} | {:error, reason()}
  def artifact_read(_artifact, _options), do: unloaded()

  @spec import_check(module_ref(), item :: non_neg_integer(), term()) ::
          :ok | :type | :out_of_bounds
  def import_check(_module, _item, _value), do: unloaded()

  @typedoc "What is given for each import that is no function: limits, or a global's value."
  @type given :: [{non_neg_integer(), non_neg_integer() | nil} | term()]

  @typedoc """
  Timeout, maximal depth, memory, table elements and fuel, nil being no limit; and what is granted
  of WASI, with the indices of the imports that are WASI's.
  """
  @type instance_options ::
          {integer(), pos_integer(), non_neg_integer() | nil, non_neg_integer() | nil,
           non_neg_integer() | nil, {wasi_ref(), [import_index()]} | nil}

  @spec instance_start(module_ref(), instance_options(), given()) ::
          {instance_ref(), step()} | :dirty
  def instance_start(_module, _options, _given), do: unloaded()

  @spec instance_start_dirty(module_ref(), instance_options(), given()) ::
          {instance_ref(), step()}
  def instance_start_dirty(_module, _options, _given), do: unloaded()

  @spec instance_close(instance_ref()) :: :ok | :dirty
  def instance_close(_instance), do: unloaded()

  @spec instance_close_dirty(instance_ref()) :: :ok
  def instance_close_dirty(_instance), do: unloaded()

  @spec instance_interrupt(instance_ref()) :: :ok
  def instance_interrupt(_instance), do: unloaded()

  @spec instance_leave(instance_ref()) :: boolean()
  def instance_leave(_instance), do: unloaded()

  @spec call_start(instance_ref(), binary() | reference(), list(), integer(), boolean()) :: step()
  def call_start(_instance, _function, _args, _timeout, _unsigned), do: unloaded()

  @spec call_start_dirty(instance_ref(), binary() | reference(), list(), integer(), boolean()) ::
          step()
  def call_start_dirty(_instance, _function, _args, _timeout, _unsigned), do: unloaded()

  @doc """
  How many milliseconds the instance's innermost call, or its last one, has before its timeout,
  rounded up.
  """
  @spec call_time_left(instance_ref()) :: timeout()
  def call_time_left(_instance), do: unloaded()

  @spec call_resume(instance_ref(), :continue | :return | :raise, term()) :: step()
  def call_resume(_instance, _answer, _value), do: unloaded()

  @spec call_resume_dirty(instance_ref(), :continue | :return | :raise, term()) :: step()
  def call_resume_dirty(_instance, _answer, _value), do: unloaded()

  @spec export_perform(instance_ref(), atom(), String.t(), non_neg_integer() | nil, term()) ::
          :ok | {:ok, term()} | {:error, reason()} | {:queue, reference()} | :dirty
  def export_perform(_instance, _verb, _name, _index, _value), do: unloaded()

  @spec export_perform_dirty(instance_ref(), atom(), String.t(), non_neg_integer() | nil, term()) ::
          :ok | {:ok, term()} | {:error, reason()} | {:queue, reference()}
  def export_perform_dirty(_instance, _verb, _name, _index, _value), do: unloaded()

  @typep memory_name :: String.t() | nil

  @spec memory_size(instance_ref(), memory_name()) ::
          {:ok, non_neg_integer()} | {:error, reason()} | :dirty
  def memory_size(_instance, _memory), do: unloaded()

  @spec memory_size_dirty(instance_ref(), memory_name()) ::
          {:ok, non_neg_integer()} | {:error, reason()}
  def memory_size_dirty(_instance, _memory), do: unloaded()

  @spec memory_read(instance_ref(), memory_name(), non_neg_integer(), non_neg_integer()) ::
          {:ok, binary()} | {:error, reason()} | :dirty
  def memory_read(_instance, _memory, _offset, _length), do: unloaded()

  @spec memory_read_dirty(instance_ref(), memory_name(), non_neg_integer(), non_neg_integer()) ::
          {:ok, binary()} | {:error, reason()}
  def memory_read_dirty(_instance, _memory, _offset, _length), do: unloaded()

  @spec memory_read_string(instance_ref(), memory_name(), non_neg_integer(), pos_integer()) ::
          {:ok, binary()} | {:error, reason()} | :dirty
  def memory_read_string(_instance, _memory, _offset, _chunk), do: unloaded()

  @spec memory_read_string_dirty(
          instance_ref(),
          memory_name(),
          non_neg_integer(),
          pos_integer()
        ) :: {:ok, binary()} | {:error, reason()}
  def memory_read_string_dirty(_instance, _memory, _offset, _chunk), do: unloaded()

  @spec memory_write(instance_ref(), memory_name(), non_neg_integer(), iodata(), boolean()) ::
          :ok | {:error, reason()} | :badarg | :dirty
  def memory_write(_instance, _memory, _offset, _data, _terminated), do: unloaded()

  @spec memory_write_dirty(instance_ref(), memory_name(), non_neg_integer(), iodata(), boolean()) ::
          :ok | {:error, reason()} | :badarg
  def memory_write_dirty(_instance, _memory, _offset, _data, _terminated), do: unloaded()

  @typep place :: {instance_ref(), memory_name(), non_neg_integer()}
  @typep number_kind :: number_type() | {:wrap, number_type()}
  @typep number_type :: :i8 | :u8 | :i16 | :u16 | :i32 | :u32 | :i64 | :u64 | :f32 | :f64

  @spec typed_read(instance_ref(), memory_name(), non_neg_integer(), number_type()) ::
          {:ok, number() | atom()} | {:error, reason()} | :badarg | :dirty
  def typed_read(_instance, _memory, _offset, _type), do: unloaded()

  @spec typed_read_dirty(instance_ref(), memory_name(), non_neg_integer(), number_type()) ::
          {:ok, number() | atom()} | {:error, reason()} | :badarg
  def typed_read_dirty(_instance, _memory, _offset, _type), do: unloaded()

  @spec typed_write(
          instance_ref(),
          memory_name(),
          non_neg_integer(),
          number_kind(),
          number() | atom()
        ) :: :ok | {:error, reason()} | :badarg | :dirty
  def typed_write(_instance, _memory, _offset, _type, _value), do: unloaded()

  @spec typed_write_dirty(
          instance_ref(),
          memory_name(),
          non_neg_integer(),
          number_kind(),
          number() | atom()
        ) :: :ok | {:error, reason()} | :badarg
  def typed_write_dirty(_instance, _memory, _offset, _type, _value), do: unloaded()

  @spec typed_read_array(
          instance_ref(),
          memory_name(),
          non_neg_integer(),
          number_type(),
          non_neg_integer()
        ) :: {:ok, list()} | {:error, reason()} | :badarg | :dirty
  def typed_read_array(_instance, _memory, _offset, _type, _count), do: unloaded()

  @spec typed_read_array_dirty(
          instance_ref(),
          memory_name(),
          non_neg_integer(),
          number_type(),
          non_neg_integer()
        ) :: {:ok, list()} | {:error, reason()} | :badarg
  def typed_read_array_dirty(_instance, _memory, _offset, _type, _count), do: unloaded()

  @spec typed_write_array(
          instance_ref(),
          memory_name(),
          non_neg_integer(),
          number_kind(),
          list()
        ) :: :ok | {:error, reason()} | :badarg | :dirty
  def typed_write_array(_instance, _memory, _offset, _type, _values), do: unloaded()

  @spec typed_write_array_dirty(
          instance_ref(),
          memory_name(),
          non_neg_integer(),
          number_kind(),
          list()
        ) :: :ok | {:error, reason()} | :badarg
  def typed_write_array_dirty(_instance, _memory, _offset, _type, _values), do: unloaded()

  @spec typed_read_many(instance_ref(), memory_name(), list()) ::
          {:ok, list()} | {:error, reason()} | :badarg | :dirty
  def typed_read_many(_instance, _memory, _places), do: unloaded()

  @spec typed_read_many_dirty(instance_ref(), memory_name(), list()) ::
          {:ok, list()} | {:error, reason()} | :badarg
  def typed_read_many_dirty(_instance, _memory, _places), do: unloaded()

  @spec typed_write_many(instance_ref(), memory_name(), list(), boolean()) ::
          :ok | {:error, reason()} | :badarg | :dirty
  def typed_write_many(_instance, _memory, _writes, _wrap), do: unloaded()

  @spec typed_write_many_dirty(instance_ref(), memory_name(), list(), boolean()) ::
          :ok | {:error, reason()} | :badarg
  def typed_write_many_dirty(_instance, _memory, _writes, _wrap), do: unloaded()

  @spec block_fill(instance_ref(), memory_name(), non_neg_integer(), byte(), non_neg_integer()) ::
          :ok | {:error, reason()} | :badarg | :dirty
  def block_fill(_instance, _memory, _offset, _byte, _length), do: unloaded()

  @spec block_fill_dirty(
          instance_ref(),
          memory_name(),
          non_neg_integer(),
          byte(),
          non_neg_integer()
        ) :: :ok | {:error, reason()} | :badarg
  def block_fill_dirty(_instance, _memory, _offset, _byte, _length), do: unloaded()

  @spec block_find(instance_ref(), memory_name(), non_neg_integer(), non_neg_integer(), binary()) ::
          {:ok, non_neg_integer() | nil} | {:error, reason()} | :badarg | :dirty
  def block_find(_instance, _memory, _offset, _length, _pattern), do: unloaded()

  @spec block_find_dirty(
          instance_ref(),
          memory_name(),
          non_neg_integer(),
          non_neg_integer(),
          binary()
        ) :: {:ok, non_neg_integer() | nil} | {:error, reason()} | :badarg
  def block_find_dirty(_instance, _memory, _offset, _length, _pattern), do: unloaded()

  @spec block_copy(
          instance_ref(),
          memory_name(),
          non_neg_integer(),
          place(),
          non_neg_integer()
        ) :: :ok | {:error, reason()} | :badarg | :dirty
  def block_copy(_instance, _memory, _offset, _source, _length), do: unloaded()

  @spec block_copy_dirty(
          instance_ref(),
          memory_name(),
          non_neg_integer(),
          place(),
          non_neg_integer()
        ) :: :ok | {:error, reason()} | :badarg
  def block_copy_dirty(_instance, _memory, _offset, _source, _length), do: unloaded()

  @spec block_compare(
          instance_ref(),
          memory_name(),
          non_neg_integer(),
          place(),
          non_neg_integer()
        ) :: {:ok, :lt | :eq | :gt} | {:error, reason()} | :badarg | :dirty
  def block_compare(_instance, _memory, _offset, _other, _length), do: unloaded()

  @spec block_compare_dirty(
          instance_ref(),
          memory_name(),
          non_neg_integer(),
          place(),
          non_neg_integer()
        ) :: {:ok, :lt | :eq | :gt} | {:error, reason()} | :badarg
  def block_compare_dirty(_instance, _memory, _offset, _other, _length), do: unloaded()

  @spec utf8_read(instance_ref(), memory_name(), non_neg_integer(), non_neg_integer(), boolean()) ::
          {:ok, String.t()} | {:error, reason()} | :badarg | :dirty
  def utf8_read(_instance, _memory, _offset, _length, _replace), do: unloaded()

  @spec utf8_read_dirty(
          instance_ref(),
          memory_name(),
          non_neg_integer(),
          non_neg_integer(),
          boolean()
        ) :: {:ok, String.t()} | {:error, reason()} | :badarg
  def utf8_read_dirty(_instance, _memory, _offset, _length, _replace), do: unloaded()

  @spec utf8_write(instance_ref(), memory_name(), non_neg_integer(), binary(), boolean()) ::
          {:ok, non_neg_integer()} | {:error, reason()} | :badarg | :dirty
  def utf8_write(_instance, _memory, _offset, _string, _replace), do: unloaded()

  @spec utf8_write_dirty(instance_ref(), memory_name(), non_neg_integer(), binary(), boolean()) ::
          {:ok, non_neg_integer()} | {:error, reason()} | :badarg
  def utf8_write_dirty(_instance, _memory, _offset, _string, _replace), do: unloaded()

  @spec held_list(instance_ref()) ::
          {:ok, [{pos_integer(), non_neg_integer(), pid() | nil}]} | {:error, reason()} | :dirty
  def held_list(_instance), do: unloaded()

  @spec held_list_dirty(instance_ref()) ::
          {:ok, [{pos_integer(), non_neg_integer(), pid() | nil}]} | {:error, reason()}
  def held_list_dirty(_instance), do: unloaded()

  @spec held_note(instance_ref(), pos_integer(), non_neg_integer(), pid()) :: :ok
  def held_note(_instance, _pointer, _size, _by), do: unloaded()

  @spec held_forget(instance_ref(), non_neg_integer()) :: {non_neg_integer(), pid() | nil} | nil
  def held_forget(_instance, _pointer), do: unloaded()

  @spec held_count(instance_ref()) :: {:ok, non_neg_integer()} | {:error, reason()}
  def held_count(_instance), do: unloaded()

  @spec wasi_new(tuple()) ::
          {:ok, wasi_ref()} | {:error, {String.t() | nil, File.posix() | String.t()}} | :dirty
  def wasi_new(_options), do: unloaded()

  @spec wasi_new_dirty(tuple()) ::
          {:ok, wasi_ref()} | {:error, {String.t() | nil, File.posix() | String.t()}}
  def wasi_new_dirty(_options), do: unloaded()

  @spec wasi_signature(String.t()) ::
          {[Beamr.Module.value_type()], [Beamr.Module.value_type()]} | nil
  def wasi_signature(_name), do: unloaded()

  @spec wasi_take(instance_ref(), 1 | 2) :: binary()
  def wasi_take(_instance, _stream), do: unloaded()

  @spec wasi_feed(instance_ref(), binary()) :: :ok
  def wasi_feed(_instance, _bytes), do: unloaded()

  @spec wasi_disarm(instance_ref()) :: boolean()
  def wasi_disarm(_instance), do: unloaded()

  @spec count_live() :: [{atom(), non_neg_integer()}]
  def count_live, do: unloaded()

  @spec bench_noop() :: :ok
  def bench_noop, do: unloaded()

  @spec bench_binary(binary()) :: {:ok, binary()}
  def bench_binary(_bytes), do: unloaded()

  defp unloaded, do: :erlang.nif_error(:nif_not_loaded)
end
